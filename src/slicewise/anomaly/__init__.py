"""What of a head a denoiser of normal heads does not expect: pseudo-normal heads, residuals, scores. Research use only.

`draws` draws what the slices would look like if they were normal; `score` makes residuals, z-scores, scores and regions
of them; `reference` measures what normal heads leave; `run` takes a scan through all of it; `files` writes what comes
out; `baselines` are what a method has to beat.
"""
