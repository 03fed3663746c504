"""The history of the resources: who has changed what, when and why, kept in the store beside what it is about."""
