"""PURE: ids, pipeline spec, messages, topics, retry policy, errors, codec."""
