"""The web interface: reads run folders, starts `studio` commands as processes of their own, and never imports torch."""
