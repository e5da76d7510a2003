"""The local stack: Apache Kafka, Valkey and every service, from Python packages alone."""
