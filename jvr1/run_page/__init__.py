"""The page of a run: what its workdir holds, and what of it is shown."""
