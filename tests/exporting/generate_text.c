/* Runs signature serving_default of a SavedModel through TensorFlow's C API: no Python, no Keras.
 *
 *     generate_text MODEL OPERATIONS.so INPUT:INDEX OUTPUT:INDEX TEXT...
 *
 * Prints the length of each generated text in bytes on a line of its own, then the text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static TF_Status* status;

static void check(const char* what) {
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "%s: %s\n", what, TF_Message(status));
    exit(1);
  }
}

static TF_Output find(TF_Graph* graph, char* tensor_name) {
  char* colon = strrchr(tensor_name, ':');
  *colon = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, tensor_name), atoi(colon + 1)};
  if (output.oper == NULL) {
    fprintf(stderr, "no operation %s\n", tensor_name);
    exit(1);
  }
  return output;
}

int main(int count, char** arguments) {
  status = TF_NewStatus();
  TF_LoadLibrary(arguments[2], status);
  check("operations");
  TF_Graph* graph = TF_NewGraph();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(TF_NewSessionOptions(), NULL, arguments[1], tags, 1, graph, NULL, status);
  check("model");

  int batch = count - 5;
  int64_t shape[] = {batch};
  TF_Tensor* texts = TF_AllocateTensor(TF_STRING, shape, 1, batch * sizeof(TF_TString));
  TF_TString* strings = TF_TensorData(texts);
  for (int i = 0; i < batch; i++) {
    TF_TString_Init(strings + i);
    TF_TString_Copy(strings + i, arguments[5 + i], strlen(arguments[5 + i]));
  }
  TF_Output input = find(graph, arguments[3]), output = find(graph, arguments[4]);
  TF_Tensor* generated = NULL;
  TF_SessionRun(session, NULL, &input, &texts, 1, &output, &generated, 1, NULL, 0, NULL, status);
  check("run");
  TF_TString* results = TF_TensorData(generated);
  for (int i = 0; i < batch; i++) {
    size_t size = TF_TString_GetSize(results + i);
    printf("%zu\n", size);
    fwrite(TF_TString_GetDataPointer(results + i), 1, size, stdout);
  }
  return 0;
}
