"""NBMF: records that are encoded, named by their hash, and kept in a hot, a warm and a cold tier.

record     a record and its canonical bytes, whose SHA-256 is its id
frame      one record, compressed against a shared dictionary
segment    many records in one file, compressed together
shelf      what is where, and the frames: SQLite
store      the tiers: what is read moves up, what is idle or too much moves down
"""
