"""The study of network morphism: how far a student gets that starts as its teacher."""
