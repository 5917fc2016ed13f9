"""How the components are put together: configuration, supervisor, courier, worker pools, authentication, wiring."""
