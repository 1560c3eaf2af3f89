// Command sett is the one binary of Sett: server, client and administration tool.
//
// One file holds one command: it parses its arguments, calls the package that does
// the work and prints the answer. serve calls node, everything else calls client,
// dev runs serve. What the commands share is in main.go (start and end), exit.go
// (exit codes and error lines), connect.go (the flags of client commands) and
// output.go (what answers look like).
package main
