"""What fits where and how fast it could be: pure arithmetic, before anything is started.

    models, devices    what is known by name
    memory             bytes: weights, KV, and what they leave room for
    speed              seconds: the floor of a decode step and of a prefill
    deployment         one model on one kind of device, and what to change where it does not fit

Knows no torch and reads no device; whoever asks brings the facts. Bytes are per rank unless a name
says otherwise.
"""
