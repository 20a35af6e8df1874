# Varnish with its built-in rules: it goes by what the upstream states, without grace, and keeps objects for revalidation.
vcl 4.1;
backend default {
  .host = "127.0.0.1";
  .port = "@UPSTREAM@";
}
