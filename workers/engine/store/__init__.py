"""Store: files kept between attempts and jobs."""
