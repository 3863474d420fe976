"""A request: the Ray Serve app, hot swap and schemas; knows nothing of how a semantic ID is computed."""
