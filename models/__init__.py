"""Pure machine learning: tensors in, tensors and metrics out; knows nothing of Kafka, Ray or HTTP, and never logs."""
