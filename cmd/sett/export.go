package main

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) exportCommand() *cobra.Command {
	var prefix string
	cmd := &cobra.Command{
		Use:   "export [--prefix P] [FILE]",
		Short: "Write keys and values as lines of JSON, of one revision, to a file or to standard output",
		Long: `Write all keys, or those that begin with a prefix, as lines of JSON: {"begin":true,…},
the JSON form of each key, {"end":true,"count":N,"revision":R}. All are of one revision,
whatever is written meanwhile.

FILE gets its name once it is whole and on disk. What goes to standard output is whole if
the exit code is 0; its last line says so, and sett import looks for it.`,
		Args: cobra.MaximumNArgs(1),
	}
	conn := a.connectionFlags(cmd)
	reading := readFlags(cmd)
	cmd.Flags().StringVar(&prefix, "prefix", "", "only keys that begin with this")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := reading.options()
		if err != nil {
			return err
		}
		return conn.stream(cmd, func(ctx context.Context, cl *client.Client) error {
			var res client.ExportResult
			export := func(w io.Writer) error {
				bar, done := a.progress("export", -1)
				defer done()
				buf := bufio.NewWriterSize(io.MultiWriter(w, bar), 256<<10)
				var err error
				if res, err = cl.Export(ctx, buf, prefix, o); err != nil {
					return err
				}
				return buf.Flush()
			}
			if len(args) == 0 || args[0] == "-" {
				return export(a.out)
			}
			if err := writeWhole(args[0], export); err != nil {
				return err
			}
			return conn.printExport(res)
		})
	}
	return cmd
}

func (c *connection) printExport(r client.ExportResult) error {
	if c.output == outputJSON {
		return printJSON(c.app.out, struct {
			Count    uint64 `json:"count"`
			Revision uint64 `json:"revision"`
		}{r.Count, uint64(r.Revision)})
	}
	if c.output == outputRaw {
		_, err := fmt.Fprintln(c.app.out, r.Count)
		return err
	}
	_, err := fmt.Fprintf(c.app.out, "exported %d keys of revision %d\n", r.Count, r.Revision)
	return err
}
