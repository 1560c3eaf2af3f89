package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version string

func main() {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ()}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// app is what a command may touch of the outside.
type app struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
	// parsed is set once the command line was understood: errors before it are the
	// user's, of exit code 2.
	parsed bool
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(negativeLast(args))
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if !a.parsed {
		err = usagef("%w; see %q", err, cmd.CommandPath()+" --help")
	}
	fmt.Fprintln(a.err, "sett: "+errorLine(err))
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "sett",
		Short: "A replicated key-value store: server, client and administration in one binary",
		Long: `Sett is a replicated key-value store. This one binary is its server, its client
and its administration tool.

  sett dev            a whole cluster on this machine, to try things out
  sett put greeting hello
  sett get greeting

Client commands find the cluster by --endpoints or SETT_ENDPOINTS.

Exit codes: 0 done, 1 other error, 2 wrong usage, 3 not found, 4 precondition
failed, 5 cluster unavailable, 6 outcome unknown.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			a.parsed = true
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddCommand(
		a.serveCommand(), a.devCommand(),
		a.putCommand(), a.getCommand(), a.delCommand(), a.incrCommand(), a.appendCommand(),
		a.lsCommand(), a.txnCommand(), a.watchCommand(), a.exportCommand(), a.importCommand(),
		a.compactCommand(), a.pinCommand(), a.unpinCommand(),
		a.membersCommand(), a.statusCommand(), a.healthCommand(),
		a.joinCommand(), a.leaveCommand(), a.removeCommand(), a.promoteCommand(), a.demoteCommand(), a.transferLeaderCommand(),
		a.versionCommand(),
	)
	root.Version = buildVersion()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			// Without this an unknown shell prints the help and succeeds.
			c.RunE = func(_ *cobra.Command, args []string) error {
				return usagef("completion needs one of bash, zsh, fish and powershell, not %q", strings.Join(args, " "))
			}
		}
	}
	return root
}
