package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	kp "github.com/IBM/keyprotect-go-client"
)

// report writes what each call came to: one JSON line each, into the file that
// CONFORMANCE_REPORT names.
type report struct {
	file *os.File
	made map[string]bool
}

// refusal is the right answer where that is no success.
type refusal struct {
	status int
	words  string
	why    string
}

func newReport() *report {
	file, err := os.OpenFile(os.Getenv("CONFORMANCE_REPORT"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot write the report:", err)
		os.Exit(1)
	}
	return &report{file, map[string]bool{}}
}

func (r *report) write(name, outcome, note string) {
	line, _ := json.Marshal(map[string]string{"name": name, "outcome": outcome, "note": note})
	fmt.Fprintln(r.file, string(line))
}

// call makes a call and notes whether it works.
func (r *report) call(name string, work func() error) {
	r.settle(name, work, nil)
}

// refused makes a call whose right answer is a refusal.
func (r *report) refused(name string, right refusal, work func() error) {
	r.settle(name, work, &right)
}

func (r *report) settle(name string, work func() error, right *refusal) {
	r.made[strings.SplitN(name, " ", 2)[0]] = true
	err := attempt(work)
	switch {
	case err == nil && right == nil:
		r.write(name, "works", "")
	case err == nil:
		r.write(name, "fails", "answered; a refusal was right: "+right.why)
	case right != nil && right.is(err):
		r.write(name, "works", "refused, as it should be: "+right.why)
	default:
		r.write(name, "fails", gist(err))
	}
}

// attempt turns a panic inside the client into a failure of that call.
func attempt(work func() error) (err error) {
	defer func() {
		if what := recover(); what != nil {
			err = fmt.Errorf("the client panicked: %v", what)
		}
	}()
	return work()
}

// is tells whether err is the refusal that was meant; "there is no such path" never is.
func (r *refusal) is(err error) bool {
	var answer *kp.Error
	return errors.As(err, &answer) && answer.StatusCode == r.status &&
		strings.Contains(err.Error(), r.words) && !strings.Contains(err.Error(), "PATH_NOT_FOUND_ERR")
}

// gist is the status with the reasons' codes and messages, or what else went wrong.
func gist(err error) string {
	var answer *kp.Error
	if !errors.As(err, &answer) {
		said := strings.Join(strings.Fields(err.Error()), " ")
		return said[:min(len(said), 300)]
	}
	said := fmt.Sprint(answer.StatusCode)
	if len(answer.Reasons) == 0 {
		return said + " " + answer.Message
	}
	for _, reason := range answer.Reasons {
		said += " " + reason.Code + ": " + reason.Message
	}
	return said
}

// missing notes the client's calls that were never made.
func (r *report) missing() {
	calls := reflect.TypeOf(&kp.Client{})
	for n := 0; n < calls.NumMethod(); n++ {
		if name := calls.Method(n).Name; !r.made[name] {
			r.write(name, "fails", "not called")
		}
	}
}

// equal fails a call that answered the wrong thing.
func equal(is, should any) error {
	if reflect.DeepEqual(is, should) {
		return nil
	}
	return fmt.Errorf("%v instead of %v", is, should)
}
