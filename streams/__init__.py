"""The contract: events, topics, producing and consuming, shard files, sources; knows nothing of torch, Ray or HTTP."""
