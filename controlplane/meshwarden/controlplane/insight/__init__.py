"""What the reports mean: objectives, and whether they are kept."""
