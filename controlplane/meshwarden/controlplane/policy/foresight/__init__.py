"""What a change would do, before it is made: to calls that could come, and to calls that were seen."""
