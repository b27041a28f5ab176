"""One captured graph per network: export, batch norms, folding, cut points, subgraphs."""
