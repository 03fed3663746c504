"""Staged changes of policies: watched, judged, and promoted or rolled back."""
