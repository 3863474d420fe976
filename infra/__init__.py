"""What all parts share: settings, storage, metrics, logging, errors, the local Kafka."""
