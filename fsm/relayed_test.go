package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/settkv/sett/kv"
)

// TestRelayedCommand: a command made elsewhere becomes the one that would have been made
// here, whatever time its maker put on it.
func TestRelayedCommand(t *testing.T) {
	for _, once := range []kv.Once{{}, {Key: "k", Request: [32]byte{1, 2, 3}}} {
		tx := goldenTxn()
		tx.Once = once
		want, err := EncodeTxn(tx, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		for _, born := range []uint64{0, 1, 1 << 62} {
			sent, err := EncodeTxn(tx, born)
			if err != nil {
				t.Fatal(err)
			}
			was := bytes.Clone(sent)
			got, cmd, err := relayed(sent, 1<<40)
			if err != nil || !bytes.Equal(cmd, want) {
				t.Errorf("key %q, born %d: %x, want %x: %v", once.Key, born, cmd, want, err)
			}
			got.Once = once // of which only hashes are sent
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tx) {
				t.Errorf("%+v, want %+v", got, tx)
			}
			if !bytes.Equal(was, sent) {
				t.Error("the sender's bytes were changed")
			}
		}
	}
}

// TestMalformedIsNotRelayed: what can't be applied must not get into the log, where it
// would stop every node; and only transactions are taken.
func TestMalformedIsNotRelayed(t *testing.T) {
	f := newMachine(t)
	tx := goldenTxn()
	for _, once := range []kv.Once{{}, {Key: "k"}} {
		tx.Once = once
		cmd, err := EncodeTxn(tx, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.Relayed(cmd); err != nil {
			t.Fatal(err)
		}
		for n := range cmd {
			if _, _, err := f.Relayed(cmd[:n]); !errors.Is(err, kv.ErrInvalidArgument) {
				t.Fatalf("the first %d bytes of %d: %v", n, len(cmd), err)
			}
		}
		if _, _, err := f.Relayed(append(cmd, 0)); !errors.Is(err, kv.ErrInvalidArgument) {
			t.Errorf("a byte too many: %v", err)
		}
	}
	for _, cmd := range [][]byte{EncodeExpire(MaxExpire), {cmdCompact, 1}, {cmdSettings, '{', '}'}, {0xff}, {}} {
		if _, _, err := f.Relayed(cmd); !errors.Is(err, kv.ErrInvalidArgument) {
			t.Errorf("%x: %v", cmd, err)
		}
	}
}
