"""Names of the numbers of evaluations, without the libraries that compute them."""

PERPLEXITIES = ("token_perplexity", "word_perplexity", "bits_per_byte")
EDITS = ("substitutions", "insertions", "deletions")
RAW_RATES = ("wer_raw", "cer_raw")
RATES = ("wer", "cer", *RAW_RATES)
"""Word and character error rate, of normalized and of raw transcripts."""
COUNTS = tuple(f"{rate}_{count}" for rate in RATES for count in ("length", *EDITS))
