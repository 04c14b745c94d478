"""What is computed: candidate operations and the network. Flax lives here."""
