"""The mesh as it changes, for many who watch.

look        what is to be seen at a moment, of everybody's
scene       what of that a scope is told, and what is new since another scene
feed        one look for all, one scene for all who watch the same
"""
