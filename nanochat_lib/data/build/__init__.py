"""Build a corpus of any size: read, dedup, judge and write it, in bounded memory, resumably."""
