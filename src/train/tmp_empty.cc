// train
namespace fathom {}
