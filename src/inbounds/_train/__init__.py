"""What moves weights: a plan in force, and the steps and fits that it follows."""
