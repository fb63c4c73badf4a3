"""Training a network on labels: heads, recipes, the loop. The one part of `learn` with torch."""
