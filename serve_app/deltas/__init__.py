"""The multiplexed token stream from model replicas to an ingress.

One TCP connection per (ingress, model replica) carries the deltas of all their requests, one frame
per engine step. The replica dials the address that came with a submission and proves itself by the
ingress's random token; nobody else gets a byte in.

The end of a stream rides in its last RequestOutput. End of file, or silence for LINK_TIMEOUT_S and
DOUBT_S, fails every stream that the connection was feeding. Knows no HTTP, no Ray and no tenants.
"""

from serve_app.deltas.links import DeltaLinks
from serve_app.deltas.messages import DeltaAddress, Submission, accepted
from serve_app.deltas.server import DeltaServer
from serve_app.deltas.stream import DeltaStream, ReplicaLostError, Silence

__all__ = [
    "DeltaAddress",
    "DeltaLinks",
    "DeltaServer",
    "DeltaStream",
    "ReplicaLostError",
    "Silence",
    "Submission",
    "accepted",
]
