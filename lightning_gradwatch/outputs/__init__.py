"""Where a run is told of: loggers, files beside the logs, messages."""
