"""What all parts share: settings, storage, metrics, logging, errors, the local Kafka; knows nothing of the other packages."""
