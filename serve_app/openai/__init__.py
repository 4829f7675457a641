"""OpenAI's wire format as data: what people send, what they get back. No HTTP server in sight."""
