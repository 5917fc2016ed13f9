"""The gRPC plumbing every service uses: server, channel, errors, validation, authentication, deadlines."""
