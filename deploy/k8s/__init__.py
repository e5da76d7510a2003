"""Where Anabranch runs on Kubernetes: what of the manifests follows from tables, and is made from them."""
