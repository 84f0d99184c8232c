"""What a user holds, as a listing: tables, data sets, arrays, archives, addresses."""
