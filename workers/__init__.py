"""The long-running processes: uploads, watches, freshness, training; they know nothing of how a request is answered."""
