"""An Apache Kafka broker from pip alone, for one machine: its jars, its data directory, its process."""
