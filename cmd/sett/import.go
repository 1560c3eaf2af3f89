package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) importCommand() *cobra.Command {
	var o client.ImportOptions
	cmd := &cobra.Command{
		Use:   "import [FILE]",
		Short: "Load lines of JSON, from a file or standard input, in large batches",
		Long: `Load lines of JSON: the JSON form of a key puts it, {"delete":KEY} deletes one. An
export, whose first line says that it is one, is refused if its end is missing, before
anything is loaded if it is a file. Loading the same lines again does no harm.

If a line is bad, what came before it stands: the error says which line it is.`,
		Args: cobra.MaximumNArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().BoolVar(&o.Partial, "partial", false, "take an export that was cut off, as far as it goes")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in, size := a.in, int64(-1)
		if len(args) > 0 && args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if size, err = checkFile(f, o); err != nil {
				return err
			}
			in = f
		}
		return conn.stream(cmd, func(ctx context.Context, cl *client.Client) error {
			bar, done := a.progress("import", size)
			defer done()
			res, err := cl.Import(ctx, io.TeeReader(in, bar), o)
			if err != nil {
				return err
			}
			done()
			return conn.printLoad(res)
		})
	}
	return cmd
}

// checkFile refuses an export that is not whole, as far as f can be looked at from its
// end, and returns its size, -1 if it has none.
func checkFile(f *os.File, o client.ImportOptions) (int64, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case info.IsDir():
		return 0, usagef("%s is a folder; name the file in it", f.Name())
	case !info.Mode().IsRegular():
		return -1, nil
	case o.Partial:
		return info.Size(), nil
	}
	return info.Size(), client.CheckExport(f, info.Size())
}

func (c *connection) printLoad(r client.LoadResult) error {
	if c.output == outputJSON {
		return printJSON(c.app.out, struct {
			Applied  uint64 `json:"applied"`
			Revision uint64 `json:"revision"`
		}{r.Applied, uint64(r.Revision)})
	}
	if c.output == outputRaw {
		_, err := fmt.Fprintln(c.app.out, r.Applied)
		return err
	}
	_, err := fmt.Fprintf(c.app.out, "loaded %d lines, the last at revision %d\n", r.Applied, r.Revision)
	return err
}
