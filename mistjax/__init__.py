"""mistjax: a policy goes in, a safer policy comes out."""
