"""What is to hold on a model: its weights and their layouts, rules, and the plan that they make."""
