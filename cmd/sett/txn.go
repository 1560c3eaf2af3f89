package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) txnCommand() *cobra.Command {
	var file, key string
	cmd := &cobra.Command{
		Use:   "txn [-f FILE]",
		Short: "Do a transaction that is given as JSON, and print its result as JSON",
		Long: `Do a transaction, atomically, and print its result: JSON both, as POST /v1/txn takes
and gives it. It is read from FILE or from standard input.

The exit code is 0 also when the conditions did not hold and the "else" operations were
done: "succeeded" in the result tells.`,
		Example: `  echo '{"if":[{"key":"lock","exists":false}],"then":[{"put":{"key":"lock","value":"me"}}]}' | sett txn`,
		Args:    cobra.NoArgs,
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "read the transaction from here (default or -: standard input)")
	onceFlag(cmd, &key)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		body, err := a.input(file)
		if err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			res, err := cl.TxnJSON(ctx, body, key)
			if err != nil {
				return err
			}
			_, err = a.out.Write(res)
			return err
		})
	}
	return cmd
}

// input reads a file, or standard input if it has no name or is -.
func (a *app) input(file string) ([]byte, error) {
	if file == "" || file == "-" {
		return readInput(a.in, "standard input")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readInput(f, file)
}
