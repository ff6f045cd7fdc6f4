"""Which labels are wrong: the findings of a run, and the page that shows them."""
