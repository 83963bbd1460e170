"""The study of uncertainty: five methods that say when a network does not know."""
