"""What a run starts from, checked before Ray starts or a model is loaded."""
