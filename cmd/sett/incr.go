package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
)

func (a *app) incrCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "incr KEY [N]",
		Short: "Add N (default 1, may be negative) to the integer in a key and print the new number",
		Args:  cobra.RangeArgs(1, 2),
	}
	conn := a.connectionFlags(cmd)
	var key string
	onceFlag(cmd, &key)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		by := int64(1)
		if len(args) > 1 {
			var err error
			if by, err = strconv.ParseInt(args[1], 10, 64); err != nil {
				return usagef("bad value %q for N: want a 64-bit integer", args[1])
			}
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			// Only the item before tells whether the key was made.
			o := client.WriteOptions{Previous: conn.output == outputJSON, IdempotencyKey: key}
			r, err := cl.Incr(ctx, args[0], by, o)
			if err != nil {
				return err
			}
			if conn.output == outputJSON {
				return printJSON(a.out, struct {
					Revision uint64 `json:"revision"`
					Created  bool   `json:"created"`
					Value    int64  `json:"value"`
				}{uint64(r.Revision), r.Created, r.Number})
			}
			_, err = fmt.Fprintln(a.out, r.Number)
			return err
		})
	}
	return cmd
}

// negativeLast lets `sett incr KEY -5` be written as it reads: flags are cut short
// before the negative number.
func negativeLast(args []string) []string {
	if len(args) == 0 || args[0] != "incr" || slices.Contains(args, "--") {
		return args
	}
	negative := regexp.MustCompile(`^-[0-9]+$`)
	i := slices.IndexFunc(args, negative.MatchString)
	if i < 0 {
		return args
	}
	out := slices.Concat(args[:i], args[i+1:])
	return append(out, "--", args[i])
}
