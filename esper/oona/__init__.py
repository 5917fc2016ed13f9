"""The message bus: a port, and NATS JetStream or this process's memory behind it."""
