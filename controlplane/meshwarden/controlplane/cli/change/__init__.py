"""Commands that change what is stored, say what that would do, and follow it to the data planes."""
