"""What every other folder uses: errors, settings, files, downloads."""
