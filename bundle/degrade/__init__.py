"""Physical models of poor CT: parameters are sampled apart from being applied."""
